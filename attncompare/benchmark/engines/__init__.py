"""How a plan is carried out: in this process (local) or by Ray actors; the values do not depend on it."""

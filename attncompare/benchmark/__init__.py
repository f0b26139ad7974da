"""The benchmark: spec, plan, run, timing, records, store, statistics."""

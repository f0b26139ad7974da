"""What a method may ask for by parameter name: one file for each signal, found by import."""

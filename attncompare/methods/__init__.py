"""The attribution methods: one pure function per file."""

"""The bench: `make bench` and `make bench-quick`; docs/explanation/performance.md explains its table."""

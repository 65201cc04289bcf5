"""Whether the tests notice a slip: changes the sources in one place at a time, and runs the tests on each change."""

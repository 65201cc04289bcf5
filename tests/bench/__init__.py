"""Does the bench count what it says it counts? Nothing here asserts how long anything takes."""

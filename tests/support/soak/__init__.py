"""What the soak test lets happen for as long as one likes, and how it measures leftovers."""

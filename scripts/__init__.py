"""What the package is made with, and does not contain."""

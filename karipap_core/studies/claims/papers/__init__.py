"""What papers claim, in their words or nearly, with what they published."""

"""What runs a model: table of contents to come."""

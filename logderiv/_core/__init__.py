"""What any room may use; nothing here is public."""

"""What people prefer, and how it is collected."""

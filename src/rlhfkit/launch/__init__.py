"""A run on a Ray cluster; nothing else imports ray."""

"""Tasks that check an installation."""

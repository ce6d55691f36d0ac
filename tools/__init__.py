"""Tools of the people who work on the kit. Nothing in kit/ imports them."""

"""What GPU code a wheel really holds."""

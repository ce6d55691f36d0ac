"""Set-up that installs itself: from a bare Python to the torch build this machine needs."""

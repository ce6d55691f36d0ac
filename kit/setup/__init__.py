"""Set-up that installs itself: from a bare Python to an environment with the torch build this machine needs."""

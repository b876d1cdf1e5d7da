"""What every agent process shares: starting and stopping, work beside work, figures, a web server, health."""

"""What every agent process shares: a beginning and an end, work beside work, figures, a web server, health."""

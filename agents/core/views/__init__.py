"""What people want to see of a run: one fold that the command line, reports, tests and the page's twin share."""

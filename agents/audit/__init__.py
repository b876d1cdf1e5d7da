"""What is done with a run afterwards: ledger, verification, replay, comparison, report."""

"""What is done with a run afterwards: its ledger checked, its recording replayed, models compared, a report made."""

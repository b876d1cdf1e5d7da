"""The dispatcher: plans rounds, assigns their tasks, starts the next round and ends the run."""

"""The rules of labels: what an answer stands for, and what a simulated labeller says."""

"""The rules of labels: which class an answer stands for, and what a simulated labeller says."""

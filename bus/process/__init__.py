"""What a process on the bus needs of its machine: logs, files, and places to crash at.

Foreign text cannot forge a line of the log, a file is whole or not there, and a test may have a process killed at any
named point.

"""

"""Work that is shared: durable consumers, whose events go to one worker each.

An event that fails comes again after a while, is given up in the end as a dead letter, and can be given back by an
operator. What waits for whom can be asked without making anybody wait.
"""

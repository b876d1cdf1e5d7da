"""The labeller: gives each image of a user a class, by asking a model over an API, from a file, or from the truth.

It is a worker on ``run.started``: one ``images.labelled`` a user, with what it cost and which images it had to leave
out.
"""

"""From a torch model to the files that an engine trains: graphs, parameters, and the manifest that describes them.

The shipped base model lies in ``default/``. Nothing here knows the bus beyond its errors and values.
"""

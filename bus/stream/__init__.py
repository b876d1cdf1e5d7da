"""The stream of events: said once, read in order, and what could not be understood laid aside.

A publisher says a fact once, by the broker's own refusal of a second one. A reader follows the stream without gap or
duplicate across lost connections. Live messages, which nobody keeps, are read here too.
"""

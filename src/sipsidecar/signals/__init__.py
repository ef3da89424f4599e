"""Events to figures to decisions.

It sees `calls.events` only, never a packet; time is passed in.
"""

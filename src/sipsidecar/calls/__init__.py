"""Values to what is known about a call.

State lives here, time is passed in. It may import `wire`, and nothing else of this project.
What changes a call's state is in `call.py` alone, and does not depend on arrival order.
"""

"""A shop's checkout as a durable machine, and a demo that kills a worker half-way: ``python -m examples.checkout``."""

"""A shop with FastAPI and SQLAlchemy: ``python -m examples.fastapi_shop``."""

"""Makes the reference that the server shows at `/openapi.json` and `/docs`."""

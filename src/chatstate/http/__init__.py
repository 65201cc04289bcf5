"""HTTP: the routes, the shapes on the wire, and who may call from where."""

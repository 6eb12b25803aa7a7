"""`baton chat`: a client of the server in the terminal. It speaks the wire, and nothing of the floors below."""

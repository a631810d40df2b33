"""jacobian-homeostasis."""

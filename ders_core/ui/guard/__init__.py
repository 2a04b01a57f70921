"""What stands before the studio's pages: hosts, origins, the token, headers."""

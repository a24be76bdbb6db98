"""Inside of deploy/lab: whole nodes as namespaces on one machine. Start reading at deploy/lab, then node.py."""

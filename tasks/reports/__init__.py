"""Tables, pictures and pages drawn from finished runs."""

"""What the trainer calls while it trains: dashboards and guards."""

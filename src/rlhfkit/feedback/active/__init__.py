"""What to ask people next: pairs whose answers teach most, and how much choosing them gains."""

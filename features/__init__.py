"""What we know of a contact at an instant: event log, contacts, columnar lake, declared features, vectors, labels."""

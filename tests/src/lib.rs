//! What proves Nelly: floor plan, conformance, end to end.

"""The long proofs that nothing is lost: kills at any moment, damaged and hostile files."""

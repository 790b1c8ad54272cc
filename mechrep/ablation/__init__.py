"""What happens if: ablate, boost or patch a part, measure, and compare with controls."""

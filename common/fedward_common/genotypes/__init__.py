"""Genotypes at a panel of loci: which allele is which, quality, and how they become numbers."""

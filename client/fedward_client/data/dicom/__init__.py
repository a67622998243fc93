"""DICOM objects of a hospital: found, checked, indexed by study, and turned into pixels."""

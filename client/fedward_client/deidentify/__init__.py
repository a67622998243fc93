"""DICOM objects without who the patient is: PS3.15 Annex E, and a scan for what rules miss."""

"""The forms that an expert's delta may have while it is trained: one file a form."""

from ders_core.upcycle.forms.form import FORMS, Form, SavedSet, form_that_reads, make_form, normal

__all__ = ["FORMS", "Form", "SavedSet", "form_that_reads", "make_form", "normal"]

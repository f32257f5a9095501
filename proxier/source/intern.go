// SPDX-License-Identifier: Apache-2.0

package source

import (
	"unique"

	"fairlead/proxier/model"
)

// KeyOf returns the key of an object. Of the namespace, which many objects
// share, there is one copy.
func KeyOf(namespace, name string) model.ObjectKey {
	return model.ObjectKey{Namespace: intern(namespace), Name: name}
}

// intern returns the one copy of a name that recurs in many objects, each of
// which has its own as it is decoded.
func intern(name string) string { return unique.Make(name).Value() }

// SPDX-License-Identifier: Apache-2.0

package visible

import (
	"cmp"
	"reflect"
	"slices"
)

// Map returns a copy of v in which f was applied to every string: those in structs, slices, maps
// (keys too) and behind pointers. Fields that are not exported are shared with v, and so are
// numbers. Keys that f makes equal are told apart by a trailing apostrophe. v must not hold itself.
func Map[T any](v T, f func(string) string) T {
	mapIn(reflect.ValueOf(&v).Elem(), f)
	return v
}

// mapIn changes v, a copy already, and copies what it points to.
func mapIn(v reflect.Value, f func(string) string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(f(v.String()))
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return
		}
		c := copyOf(v.Elem(), f)
		if v.Kind() == reflect.Pointer {
			c = c.Addr()
		}
		v.Set(c)
	case reflect.Struct:
		for i := range v.NumField() {
			// The exported fields of an embedded struct are seen even where its type is not exported.
			if t := v.Type().Field(i); t.IsExported() || t.Anonymous && t.Type.Kind() == reflect.Struct {
				mapIn(v.Field(i), f)
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			mapIn(v.Index(i), f)
		}
	case reflect.Slice:
		if v.IsNil() || isNumber(v.Type().Elem().Kind()) {
			return
		}
		c := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(c, v)
		v.Set(c)
		for i := range v.Len() {
			mapIn(v.Index(i), f)
		}
	case reflect.Map:
		if !v.IsNil() {
			v.Set(mapOf(v, f))
		}
	}
}

// copyOf returns a changed copy of v that can be set and pointed to.
func copyOf(v reflect.Value, f func(string) string) reflect.Value {
	c := reflect.New(v.Type()).Elem()
	c.Set(v)
	mapIn(c, f)
	return c
}

func isNumber(k reflect.Kind) bool { return k >= reflect.Bool && k <= reflect.Complex128 }

// mapOf copies a map. Keys go in order, so that equal ones get the same marks every time.
func mapOf(v reflect.Value, f func(string) string) reflect.Value {
	out := reflect.MakeMapWithSize(v.Type(), v.Len())
	keys := v.MapKeys()
	text := v.Type().Key().Kind() == reflect.String
	if text {
		slices.SortFunc(keys, func(a, b reflect.Value) int { return cmp.Compare(a.String(), b.String()) })
	}
	for _, k := range keys {
		key := copyOf(k, f)
		for text && out.MapIndex(key).IsValid() {
			key.SetString(key.String() + "'")
		}
		out.SetMapIndex(key, copyOf(v.MapIndex(k), f))
	}
	return out
}
